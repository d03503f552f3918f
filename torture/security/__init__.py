"""firetrace as a way in: names, links, requests, environment, what it installs."""
