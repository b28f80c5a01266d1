"""What the coordinator and the engines say to each other (`coordinator.proto`) and its generated stubs."""
