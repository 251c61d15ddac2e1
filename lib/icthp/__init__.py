"""Reward models beyond text-image alignment: the scoring paradox, Pick-High, ICT and HP, DRaFT-K (arXiv 2507.19002)."""
