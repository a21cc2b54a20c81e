"""What is measured of a bundle on a server: `triton` what the server adds, what several clients get, and hot updates."""
