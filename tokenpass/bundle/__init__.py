"""Replay bundles: one graph with its plan and inputs in a folder, to show a defect elsewhere."""

from tokenpass.bundle.folder import Bundle, load_bundle, save_bundle
from tokenpass.bundle.replaying import Outcome, replay

__all__ = ["Bundle", "Outcome", "load_bundle", "replay", "save_bundle"]
