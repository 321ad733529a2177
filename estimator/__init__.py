"""Turn a store of curves into findings: densities of tokens, documents and labels, and a report."""
