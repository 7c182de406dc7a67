"""The Lava runner: its processes, the compiler from NIR to a Lava network, and the guard under which it runs."""
