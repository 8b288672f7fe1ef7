"""Two small decoders trained on text that lies on any machine; lossy passes are judged on them."""
