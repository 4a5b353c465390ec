"""The demo: a support desk's intent classifier gets its misrouted tickets corrected, over HTTP, on a real model."""
