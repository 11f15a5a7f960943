"""Small experiments that show, or fail to show, the effects that methods claim."""
