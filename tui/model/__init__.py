"""From spans to what is shown: pure, without terminal and without Textual.

``digest.py`` takes in spans as they end and keeps what the screen needs of them; ``report.py``
makes numbers and words of that, ``tree.py`` the lines of the tree. Times are ns, shares 0 to 1.
"""
