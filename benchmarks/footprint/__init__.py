"""What a device pays to run a model: download, installed size, start-up time, peak memory; beside the peers."""
