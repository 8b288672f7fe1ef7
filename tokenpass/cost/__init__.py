"""What operators cost on a device."""
