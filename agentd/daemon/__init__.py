"""The daemon: told by keepers and clients, watching nobody; one loop, one store thread, one zygote."""
