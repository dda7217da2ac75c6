"""The package imports what it offers when first asked for."""

import subprocess
import sys

import captum_lrp_stab


def test_what_is_offered_is_there() -> None:
    offered: dict[str, object] = {}
    exec("from captum_lrp_stab import *", offered)
    assert set(captum_lrp_stab.__all__) <= set(offered) and set(captum_lrp_stab.__all__) <= set(
        dir(captum_lrp_stab)
    )
    assert not hasattr(captum_lrp_stab, "no_such_name")


def test_importing_it_is_quick_and_any_module_may_come_first() -> None:
    """``lrp`` and the references of a comparison need each other."""
    program = (
        "import sys, captum_lrp_stab\n"
        "assert 'torch' not in sys.modules and captum_lrp_stab.__version__\n"
        "import captum_lrp_stab.lrp\n"
        "assert 'torch' in sys.modules and captum_lrp_stab.LRP is captum_lrp_stab.lrp.LRP\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
