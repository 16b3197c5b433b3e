{
  "targets": [
    {
      "target_name": "at_moe",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": ["CMakeLists.txt", "scripts/build-native.cjs"],
          "outputs": ["<(PRODUCT_DIR)/at_moe.node"],
          "action": ["node", "scripts/build-native.cjs", "build", "--arch=<(target_arch)"],
        }
      ]
    }
  ]
}
