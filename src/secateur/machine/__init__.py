"""The ground that a run stands on: its processes, the device, the memory, the versions."""
