"""`ftune compare`: which method should I use, for these rows and on this machine?

trials        which recipes that asks to train: methods x a grid x seeds, all else alike
running       each in a process of its own, one after another, taken up where it was cut
baselines     what needs no language model: the majority, TF-IDF with a linear model
differences   whether one system is better than another, with rows and seeds as sources of chance
verdict       the sentence that answers the question, or says that it cannot be answered
table         all of it as JSON, Markdown and a picture
"""
