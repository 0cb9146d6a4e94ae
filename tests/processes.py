"""What tests that start the project's commands as processes of their own share."""

# In front of a command: signals end it also where the tests themselves were started with them ignored, as by nohup.
HEARS_CTRL_C = ("env", "--default-signal=INT,HUP")
