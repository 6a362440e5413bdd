"""A loopback stand-in for both hubs: sockets and faults in `server`, what they say in `protocols`, what they hold in `repos`."""
