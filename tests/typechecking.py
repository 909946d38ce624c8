"""The checker of annotations under pytest: beartype, for which a whole number is a float, as for Python itself."""

from beartype import BeartypeConf
from beartype import beartype as configured

beartype = configured(conf=BeartypeConf(is_pep484_tower=True))
