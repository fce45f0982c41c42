"""From a head's raw outputs to boxes without looking at places that can hold none."""
