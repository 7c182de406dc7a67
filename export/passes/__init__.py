"""What rewrites a graph: functions from graph to graph, each in a file named for what it does."""
