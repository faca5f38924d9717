"""A target with two methods, run as a process of its own: answers, is stubborn, silent or broken as it is told."""

import json
import os
import signal
import socket
import sys
import threading

RESULTS = {"framework_wait_init": True, "spdk_get_version": {"version": "SPDK v0", "fields": {}}}
RESULTS["spdk_get_version"]["fields"] = {"major": 0, "minor": 0, "patch": 0, "suffix": ""}


def serve(connection: socket.socket, slow: str) -> None:
    """Requests of the slow method are never answered."""
    while data := connection.recv(65536):
        if slow in json.loads(data)["method"]:
            continue
        request = json.loads(data)
        answer = {"jsonrpc": "2.0", "id": request["id"], "result": RESULTS[request["method"]]}
        connection.sendall(json.dumps(answer).encode())


def main() -> None:
    path, how = sys.argv[1], sys.argv[2:]
    if how == ["broken"]:
        print("no memory left", flush=True)
        sys.exit(3)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if how == ["stubborn"] else lambda *_: os._exit(0))
    if how == ["silent"]:
        signal.pause()
    if os.path.exists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    slow = "attach" if how == ["slow-attach"] else "none"
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, slow), daemon=True).start()


main()
