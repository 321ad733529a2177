"""From a store of curves to findings: densities of tokens, documents and labels, and a report."""
