"""What has become of the requests so far, in plots: one offline page, and what each setting would have bought.

`history` reads a store and its gates, `tradeoff` replays the log at other preferences, the other modules make one or a
few plots each, and `page` puts them together. Nothing here decides or changes anything.
"""
