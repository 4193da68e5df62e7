"""The border to other libraries: the only place where torch modules and dimod samplers are spoken to."""
