"""The words from which the marketplace's titles are put together."""

from __future__ import annotations

from typing import Final

DEPARTMENTS: Final[dict[str, tuple[str, ...]]] = {
    "Kitchen": ("saucepan", "coffee grinder", "chef knife", "baking tray", "kettle", "lunch box"),
    "Audio": ("headphones", "loudspeaker", "turntable", "microphone", "sound bar", "earbuds"),
    "Garden": ("pruning shears", "watering can", "plant pot", "hammock", "lawn rake", "seed box"),
    "Running": ("running shoes", "hydration belt", "running jacket", "sports watch", "headlamp", "compression socks"),
    "Beauty": ("face cream", "shampoo", "lipstick", "perfume", "nail polish", "sun lotion"),
    "Office": ("desk lamp", "fountain pen", "notebook", "desk chair", "file box", "whiteboard"),
    "Toys": ("building blocks", "jigsaw puzzle", "board game", "teddy bear", "toy train", "kite"),
    "Camping": ("tent", "sleeping bag", "camping stove", "trekking poles", "backpack", "water filter"),
    "Photography": ("camera", "tripod", "camera bag", "zoom lens", "photo printer", "picture album"),
    "Pets": ("dog leash", "cat tree", "aquarium", "bird feeder", "pet bed", "dog harness"),
    "Music": ("guitar", "ukulele", "keyboard piano", "drum pad", "violin case", "music stand"),
    "Bedroom": ("duvet", "pillow", "bed linen", "night lamp", "alarm clock", "blanket"),
}

MODIFIERS: Final = (
    "compact", "travel", "outdoor", "kids", "professional", "everyday", "mini", "foldable", "eco", "vintage",
    "heavy-duty", "lightweight", "portable", "family", "slim", "smart", "handmade", "studio", "winter", "summer",
)  # fmt: skip

# One pair of poles per style dimension: the word for a negative and for a positive coordinate.
STYLE_WORDS: Final = (
    ("rugged", "elegant"),
    ("minimalist", "ornate"),
    ("muted", "vivid"),
    ("relaxed", "sporty"),
    ("retro", "futuristic"),
    ("cosy", "cool"),
    ("serious", "playful"),
    ("soft", "sturdy"),
)

COLOURS: Final = ("black", "white", "red", "blue", "green", "yellow", "grey", "orange", "purple", "brown")
MATERIALS: Final = ("steel", "cotton", "oak", "bamboo", "leather", "glass", "wool", "aluminium", "recycled plastic")

BRAND_HEADS: Final = (
    "Al", "Bor", "Cal", "Dor", "El", "Fen", "Gal", "Hal", "Ist", "Jor",
    "Kel", "Lum", "Mar", "Nor", "Or", "Pel", "Quin", "Ros", "Sol", "Tar",
)  # fmt: skip
BRAND_MIDDLES: Final = (
    "a", "be", "ci", "do", "e", "fi", "go", "ha", "i", "ka",
    "le", "mi", "no", "o", "pa", "ri", "so", "ta", "u", "va",
)  # fmt: skip
BRAND_TAILS: Final = (
    "bel", "cott", "dale", "field", "gard", "holm", "ion", "kin", "land", "mont",
    "nell", "ora", "peak", "quist", "ridge", "stad", "ton", "vik", "well", "yard",
)  # fmt: skip
