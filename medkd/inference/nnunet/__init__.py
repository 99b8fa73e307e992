"""Models that nnU-Net v2 trained, used without nnU-Net."""
