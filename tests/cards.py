"""A release's card, changed as only its author could."""

from __future__ import annotations

import json
from pathlib import Path

from dpwg.privacy.card import PrivacyCard


def recarded(folder: Path, **changes: object) -> None:
    """Write a release's card anew with other values, as if it had been saved with them."""
    path, config = folder / "privacy_card.json", folder / "config.json"
    card = PrivacyCard.from_json(json.loads(path.read_text()) | changes)
    path.write_text(json.dumps(card.to_json()))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"card_sha256": card.sha256}))
