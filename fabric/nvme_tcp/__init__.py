"""NVMe/TCP, sans-I/O, in both roles: bytes in, commands or completions and bytes out.

Target: `target.NvmeTarget` owns subsystems and controllers; each accepted TCP connection is one
`target_connection.TargetConnection`, which is one queue pair. Host: `host_controller.HostController` brings a
controller up over `initiator.InitiatorQueue`s. No module here reads a clock or owns a socket.

Clauses: NVM Express Base Specification 2.x, NVM Command Set Specification 1.x, NVMe/TCP Transport Specification 1.x.
"""
