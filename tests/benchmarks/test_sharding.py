from benchmarks import sharding


def test_every_number_of_devices_is_counted(rows_of):
    options = ["--tokens", 64, "--landmarks", 4, "--devices", 1, 4]
    one, four = rows_of(sharding, *options, plot=False)
    assert float(one["qkvo_gb"]) >= float(four["qkvo_gb"])
    for messages, number in (("messages", "9"), ("centroid_messages", "10")):
        assert one[messages] == "0" and four[messages] == number
