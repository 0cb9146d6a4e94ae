"""What tests that start the project's commands as processes of their own share."""

# In front of a command: SIGINT ends it also where the tests themselves were started with SIGINT ignored.
HEARS_CTRL_C = ("env", "--default-signal=INT")
