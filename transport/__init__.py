"""The only owners of sockets: TCP, Unix, TLS on top of either, and memory for simulations. Below them: `Connection`."""
