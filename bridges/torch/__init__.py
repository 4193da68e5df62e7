"""From a torch network to statistics, and from a selection to masks and a smaller network."""
