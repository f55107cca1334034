{
  # For tools that know only node-gyp: CMakeLists.txt is the recipe, setup.mjs runs it.
  "targets": [
    {
      "target_name": "wrpo_native",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake_js",
          "inputs": ["CMakeLists.txt"],
          "outputs": ["<(module_root_dir)/build/Release/wrpo.node"],
          "action": ["node", "setup.mjs", "--native"],
        },
      ],
    },
  ],
}
