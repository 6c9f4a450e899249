from tensor_fusion.cli.main import main

main()
