"""The compiled searches against enumeration and against each other, under random mixes of constraints."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prunesolve.problems import BinaryQuadratic, Blocks, Budget, Cardinality, GroupBounds, InvalidProblem, LowRank
from prunesolve.solvers import SwapAnnealing, SwapTabu, _kernels
from prunesolve.solvers._base import Run
from prunesolve.solvers._descent import descend
from prunesolve.solvers._search import Search
from prunesolve.solvers._start import feasible_start
from prunesolve.solvers.testing_mixes import KINDS  # placeholder
