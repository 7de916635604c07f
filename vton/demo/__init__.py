"""`vton demo`: a page in the browser that tries garments on, for one machine and few people.

server      the addresses, and what is refused
jobs        one worker, its queue, progress and cancelling
pictures    uploaded pictures, in memory
page/       the page: one document, one style sheet, one script
"""
