"""``@pytest.mark.ftcheck(ranks=N)``: the body of a test, once in each of N processes of one gloo group."""
