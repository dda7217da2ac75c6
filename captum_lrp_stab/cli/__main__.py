"""``python -m captum_lrp_stab.cli``."""

from captum_lrp_stab.cli import main

main()
