"""What a run did and found: one document, as JSON and as a table."""

from __future__ import annotations

from typing import Any

Report = dict[str, Any]


def rows(report: Report) -> list[tuple[str, str]]:
    """The report for people: name and value."""
    load, faults = report["load"], report["faults"]
    if not load:
        return [("seed", str(report["seed"])), ("violations", str(len(report["violations"])))]
    found = [
        ("seed", str(report["seed"])),
        ("seconds", f"{report['seconds']:.0f} of faults, {report['converged_s']:.1f} until all was well"),
        ("sandbox", report["sandbox"]),
        ("data planes", ", ".join(f"{name} {plane}" for name, plane in report["planes"].items())),
        ("I/Os", f"{sum(load['ios'].values())}: " + _counted(load["ios"])),
        ("bytes", f"{sum(load['bytes'].values()) / (1 << 20):.0f} MiB"),
        ("blocks checked", str(load["blocks_checked"])),
        ("retries", f"{load['retries']}; {load['given_up']} given up, {load['refused']} of them surely not done"),
        ("ends that were not good", _counted(load["statuses"])),
        ("longest pause of an I/O", f"{load['longest_s']:.1f} s: {load['longest']}"),
        ("its longer attempts", "; ".join(load["longest_attempts"])),
        ("faults done", f"{sum(faults['kinds'].values())}: " + _counted(faults["kinds"])),
        ("by victim", _counted(faults["victims"])),
        ("disks that came and went", _counted(report["tenants"])),
        ("map faults answered", str(report["map_faults_answered"])),
        ("checks meanwhile", str(report["audits"])),
        ("violations", str(len(report["violations"]))),
    ]
    return [row for row in found if row[1]]


def text(report: Report) -> str:
    """Every row, then every violation with what belongs to it."""
    table = rows(report)
    width = max(len(name) for name, _ in table)
    lines = [f"{name:<{width}}  {value}" for name, value in table]
    for violation in report["violations"]:
        lines += ["", f"VIOLATION: {violation['text']}", *(f"  {line}" for line in violation["history"])]
    if report["kept"]:
        lines += ["", f"logs, store and the story are kept in {report['kept']}"]
    return "\n".join(lines)


def _counted(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {number}" for name, number in ordered)
