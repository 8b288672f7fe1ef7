"""The passes, one file or folder each; installed as `tokenpass.passes`."""
