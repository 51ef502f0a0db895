"""First on a process's path, this is what it imports as torch."""

raise ImportError("torch is not installed here")
