"""One job written five times, each time faster: find the dogs, cut them out, ask for each one's breed."""
