"""The network: configurations, layers, classifier, feature pyramid and cost."""
