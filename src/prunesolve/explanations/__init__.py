r"""Why a solution keeps what it keeps: what each unit near the border adds, is charged, and would cost to flip.

    h_i = a_i + sum_j J_ij x_j              what keeping unit i adds to f, the others as in x
    r_i = h_i + sum_c lambda_c g_ci         the same with what the constraints charge
    margin_i = -r_i where i is kept, r_i where it is not

g_ci is what keeping i adds to what constraint c counts: 1 for a cardinality and a group, c_i + sum_j q_ij x_j for a
budget. The multipliers lambda are those of f + sum_c lambda_c (count_c - limit_c) at which least is on the wrong side:

    minimise  sum_i max(0, -margin_i)       lambda_c >= 0 for an upper limit, <= 0 for a lower one, free for both

Of one cardinality that is any threshold -lambda from the k-th to the (k+1)-th smallest h, whatever the couplings.
"""

from .explaining import Explanation as Explanation
from .explaining import best_told as best_told
from .explaining import explain as explain
from .explaining import explain_result as explain_result
