"""What the operating system provides: threads, files, signals, output, limits and the service manager."""
