"""The demo: a support desk's classifier gets its misrouted tickets corrected, over HTTP, on a real model."""
