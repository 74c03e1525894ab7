"""What each part must reach before the base may be called done."""

GATES: dict[str, dict[str, float]] = {
    "decoder": {"all": 26.0},  # decibels, over unseen pictures in known and in held-out styles
    "judge": {"subject": 0.98, "colour": 0.98, "place": 0.98, "style": 0.98},
    "measure": {"subject": 0.85, "colour": 0.85, "place": 0.90},
}
# an overlay's style must be absent at 0 and plain at 1, with the subject still there
STYLE_AT_ZERO_AT_MOST, STYLE_AT_ONE, SUBJECT_AT_ONE = 0.05, 0.80, 0.70


def print_table(part: str, figures: dict[str, float]) -> bool:
    """Print every figure beside its gate, and tell whether all are reached."""
    gates = GATES.get(part, {})
    for name, figure in figures.items():
        verdict = "" if name not in gates else f"gate {gates[name]:g}  {'yes' if figure >= gates[name] else 'NO'}"
        print(f"{part:8} {name:18} {figure:8.3f}  {verdict}", flush=True)
    return all(figures[name] >= gate for name, gate in gates.items())


def print_overlay_table(style: str, table: dict[str, dict[str, float]]) -> bool:
    """Print the shares at each strength, and tell whether the gates are reached."""
    for strength, shares in table.items():
        print(f"overlay  strength {strength:4} {style} {shares[style]:.2f}  subject right {shares['subject']:.2f}")
    reached = (
        table["0.0"][style] <= STYLE_AT_ZERO_AT_MOST
        and table["1.0"][style] >= STYLE_AT_ONE
        and table["1.0"]["subject"] >= SUBJECT_AT_ONE
    )
    print(
        f"overlay  gates: at most {STYLE_AT_ZERO_AT_MOST} at 0, {STYLE_AT_ONE} at 1, subject {SUBJECT_AT_ONE} at 1: "
        f"{'yes' if reached else 'NO'}"
    )
    return reached
