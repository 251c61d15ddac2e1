"""What each figure and table of the project shows, by the name of its file."""

from pathlib import Path

import pandas as pd

CAPTIONS = {
    "framework": "The method: prompts and votes become triplets, triplets two scores, the scores tune a generator",
    "fig1_paradox": "CLIP's score of the same scenes drawn richer and richer; every scorer on the short prompt",
    "fig2_theory": "The cosine by the decomposition of information, measured and predicted",
    "fig3_richness": "Scenes of the microworld, richer from left to right",
    "fig4_triplets": "Triplets: a rejected picture, a preferred one, one drawn from a refined prompt",
    "fig4_theta": "What theta does to the labels of I1 and I2",
    "fig4_labels_and_audit": "The labels, of which I3's is a constant; what else tells I3 from I2",
    "fig5_accuracy": "Preference accuracy: votes apart from what holds by construction, the published numbers beside",
    "fig5_axes": "Which axis each score follows, alignment or quality",
    "fig6_tuned": "The same prompts and noise by every tuned generator, with scores",
    "fig7_tuning": "Each reward's gain while a generator is tuned on it; JPEG size",
    "fig8_effects": "What tuning changed, by measures that the reward does not see",
    "fig8_geneval": "GenEval, tuned less untuned, ours and published",
    "fig8_jpeg": "JPEG size against quality, published and ours",
    "fig8_votes": "Simulated votes against the untuned generator",
    "fig9_controls": "Each control, and each defect of the released code, alone; three seeds",
    "fig10_collapse": "DRaFT-1 with nothing that holds: own rewards, CLIP and PickScore, prompts fulfilled; three seeds",
    "fig11_remedies": "What keeps HP and ICT-HP in check, and what it costs; three seeds",
    "fig12_recipes": "What each reward draws, without and with an anchor",
    "accuracy": "Preference accuracy and the p of votes against CLIP",
    "tuned": "Every measure of every tuned generator",
    "geneval": "GenEval's tasks, ours and published",
    "transfer": "ICT's text tower in the place of CLIP's in a generator",
    "controls": "The study's controls, every measure",
    "tuning": "The study's tuned generators, every measure",
    "claims": "The paper's claims, one by one, with verdicts",
}


def index(folder) -> pd.DataFrame:
    """The figures (PNG, PDF) and tables (CSV, Markdown, LaTeX) of a folder, in the order of the story: kind, caption, indexed by name."""
    kind_of = {".png": "figure", ".csv": "table"}
    kinds = {file.stem: kind_of[file.suffix] for file in sorted(Path(folder).iterdir()) if file.suffix in kind_of}
    names = [*(name for name in CAPTIONS if name in kinds), *(name for name in kinds if name not in CAPTIONS)]
    rows = {name: {"kind": kinds[name], "shows": CAPTIONS.get(name, "")} for name in names}
    return pd.DataFrame(rows, index=["kind", "shows"]).T
