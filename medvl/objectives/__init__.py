"""Alignment losses: pure functions of gathered features and the positives."""

from medvl.catalogue import Catalogue
from medvl.features import Objective
from medvl.objectives.clip import Clip
from medvl.objectives.convirt import Convirt
from medvl.objectives.cxrclip import Cxrclip
from medvl.objectives.gloria import Gloria
from medvl.objectives.medclip import Medclip
from medvl.objectives.medvista import Medvista
from medvl.objectives.mgca import Mgca
from medvl.objectives.multi import Multi
from medvl.objectives.organs import Organs
from medvl.objectives.siglip import Siglip
from medvl.objectives.symile import Symile
from medvl.objectives.villa import Villa

__all__ = [
    "OBJECTIVES",
    "Clip",
    "Convirt",
    "Cxrclip",
    "Gloria",
    "Medclip",
    "Medvista",
    "Mgca",
    "Multi",
    "Organs",
    "Siglip",
    "Symile",
    "Villa",
]

OBJECTIVES: Catalogue[Objective] = Catalogue("objective")
OBJECTIVES.add("clip")(Clip)
OBJECTIVES.add("convirt")(Convirt)
OBJECTIVES.add("cxrclip")(Cxrclip)
OBJECTIVES.add("gloria")(Gloria)
OBJECTIVES.add("medclip")(Medclip)
OBJECTIVES.add("medvista")(Medvista)
OBJECTIVES.add("mgca")(Mgca)
OBJECTIVES.add("multi")(Multi)
OBJECTIVES.add("organs")(Organs)
OBJECTIVES.add("siglip")(Siglip)
OBJECTIVES.add("symile")(Symile)
OBJECTIVES.add("villa")(Villa)
