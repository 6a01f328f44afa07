// The lint rule `house/floors`: which files under src/ may import which others (static, dynamic and type-only imports alike).
// Modules may import the interfaces of services, layers the C interface, and src/cuda only itself and koffi. The command line is above
// them all.
import { dirname, relative, resolve, sep } from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))
const sharedByAll = "src/CudaError.ts"
/** The services that modules are made of: the runtime, and those beside it, which bring their own layers. */
const interfaces = ["src/layers/CudaRuntime.ts", "src/layers/Health.ts", "src/layers/Annotations.ts"]

const floorOf = (path) =>
  path.startsWith("src/cuda/")
    ? "cuda"
    : /^src\/layers\/(native\/|Native[^/]*$)/.test(path)
    ? "native"
    : path.startsWith("src/layers/")
    ? "layers"
    : path === "src/index.ts"
    ? "barrel"
    : path.startsWith("src/cli/")
    ? "cli"
    : "module"

const resolved = (file, source) => relative(root, resolve(root, dirname(file), source)).split(sep).join("/")

const isJob = (path) => path === "src/cluster.ts" || path.startsWith("src/cluster/")

const objection = (file, source) => {
  const floor = floorOf(file)
  const [scope, name] = source.split("/")
  const packageName = scope.startsWith("@") ? `${scope}/${name}` : scope
  if (packageName === "effect-cuda") return "Inside src, import the module by its relative path."
  if (packageName === "koffi" && floor !== "cuda" && floor !== "native") {
    return "Only src/cuda and the native runtime's files (src/layers/Native*, src/layers/native/) may import koffi."
  }
  if (floor === "cuda" && (packageName === "effect" || scope === "@effect")) return "src/cuda must not import Effect."
  if (source === "effect") return "Import the module (effect/Effect): the barrel slows down the start of every program."
  if (isJob(file) && (source.startsWith(".") ? !isJob(resolved(file, source)) : packageName !== "effect")) {
    return "Jobs over machines (src/cluster) import effect alone, so that they work with every transport and runtime."
  }
  if (!source.startsWith(".")) return undefined

  const target = resolved(file, source)
  const targetFloor = floorOf(target)
  const isAbove = targetFloor === "module" || targetFloor === "barrel" || targetFloor === "cli"
  const isLayer = targetFloor === "layers" || targetFloor === "native"
  if (floor === "cuda" && (isAbove || isLayer)) return "src/cuda must not import from the floors above it."
  if ((floor === "layers" || floor === "native") && isAbove && target !== sharedByAll) {
    return `A layer must not import a module above it, except ${sharedByAll}.`
  }
  if (targetFloor === "cli" && floor !== "cli") return "Only the command line imports the command line."
  if (floor === "cli" && targetFloor === "barrel") return "Inside src, import the module, not the barrel."
  if (floor === "module" && targetFloor === "barrel") return "Inside src, import the module, not the barrel."
  if (floor === "module" && isLayer && !interfaces.includes(target)) {
    return `A module must not import a layer other than the interfaces, ${interfaces.join(" and ")}.`
  }
  return undefined
}

const floors = {
  create(context) {
    const file = relative(root, context.filename).split(sep).join("/")
    if (!file.startsWith("src/")) return {}
    const check = (node) => {
      if (typeof node?.value !== "string") return
      const message = objection(file, node.value)
      if (message !== undefined) context.report({ node, message })
    }
    return {
      ImportDeclaration: (node) => check(node.source),
      ExportAllDeclaration: (node) => check(node.source),
      ExportNamedDeclaration: (node) => check(node.source),
      ImportExpression: (node) => check(node.source),
      TSImportType: (node) => check(node.source ?? node.argument?.literal ?? node.argument),
      CallExpression: (node) => {
        // require("koffi"), whatever the name of the function from createRequire
        if (node.callee.type === "Identifier" && /require/i.test(node.callee.name)) check(node.arguments[0])
      }
    }
  }
}

export default { meta: { name: "house" }, rules: { floors } }
