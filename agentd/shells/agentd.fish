set -g AGENTD_RUNNING 0
set -g AGENTD_ASKING 0
set -g AGENTD_PROMPT ''
set -g __agentd_count ''

function __agentd_precmd --on-event fish_prompt
    if test "$AGENTD_OWNER:$AGENTD_STATE_DIR" != "$__agentd_whose"
        set -g __agentd_whose "$AGENTD_OWNER:$AGENTD_STATE_DIR"
        set -g __agentd_board (command agentd shell --board 2>/dev/null)
        set -g __agentd_count ''
    end
    test -r "$__agentd_board/state"; or return 0
    read -l --delimiter ' ' running asking count <"$__agentd_board/state"
    set -g AGENTD_RUNNING $running
    set -g AGENTD_ASKING $asking
    set -l parts
    test "$running" != 0; and set -a parts "$running&"
    test "$asking" != 0; and set -a parts "$asking?"
    set -g AGENTD_PROMPT ''
    set -q parts[1]; and set -g AGENTD_PROMPT "[$parts] "
    if test "$count" != "$__agentd_count"
        set -g __agentd_count $count
        __agentd_tell
    end
    return 0
end

function __agentd_tell
    set -l told 0
    test -r "$__agentd_board/told"; and read told <"$__agentd_board/told"
    echo $__agentd_count >"$__agentd_board/told"
    while test "$told" -lt "$__agentd_count"
        set told (math $told + 1)
        test -r "$__agentd_board/$told"; or continue
        read -l --delimiter ' ' key seq text <"$__agentd_board/$told"
        test -e "$__agentd_board/seen/$key"; or printf '%s\n' "$text" >&2
    end
end

function __agentd_complete
    set -l words (commandline -opc)
    set -l cur (commandline -ct)
    set -l option ''
    set -l verb ''
    set -l kinds
    set -l place 0
    set -l dashes 0
    set -e words[1]
    for word in $words
        set -l name (string replace -ra '[ -]' _ -- (string trim -- "$verb $word"))
        if test -n "$option"
            set option ''
        else if test "$word" = --
            set kinds command...
            set dashes 1
            set place 0
        else if string match -q -- '-*' "$word"; and test $dashes = 0
            set option (__agentd_takes "$verb" "$word")
        else if test $place = 0; and contains -- "$name" $__agentd_verb_names
            set verb (string trim -- "$verb $word")
            set -l arguments __agentd_arguments_$name
            set kinds (string split -n ' ' -- $$arguments)
            set place 0
        else
            set place (math $place + 1)
        end
    end
    if string match -q -- '--*=*' "$cur"
        set -l name (string replace -r '=.*' '' -- "$cur")
        set option (__agentd_takes "$verb" "$name")
        test -n "$option"; and __agentd_values $option (string replace -r '^[^=]*=' '' -- "$cur") | string replace -r -- '^' "$name="
    else if test -n "$option"
        __agentd_values $option "$cur"
    else if string match -q -- '-*' "$cur"; and test $dashes = 0
        for line in (__agentd_options_of "$verb")
            set -l parts (string split \t -- $line)
            printf '%s\t%s\n' $parts[1] $parts[3]
        end
    else if set -q kinds[1]
        if test $place -ge (count $kinds)
            string match -q -- '*...' $kinds[-1]; or return
            if test "$kinds[-1]" = command...; and test $place -gt 0
                __fish_complete_path "$cur"
                return
            end
            set place (math (count $kinds) - 1)
        end
        __agentd_values (string replace ... '' -- $kinds[(math $place + 1)]) "$cur"
    else if test $place = 0
        for line in $__agentd_verbs
            set -l parts (string split \t -- $line)
            if test -z "$verb"
                string match -q -- '* *' $parts[1]; or printf '%s\n' $line
            else if string match -q -- "$verb *" $parts[1]
                string replace -- "$verb " '' $line
            end
        end
    end
end

function __agentd_options_of
    set -l verb $argv[1]
    test -n "$verb"; or set verb agentd
    set -l options __agentd_options_(string replace -ra '[ -]' _ -- $verb)
    string split -n \n -- $$options
end

function __agentd_takes
    for line in (__agentd_options_of "$argv[1]")
        set -l parts (string split \t -- $line)
        if test "$parts[1]" = "$argv[2]"; and test "$parts[2]" != -
            echo $parts[2]
            return
        end
    end
end

function __agentd_values
    switch $argv[1]
        case text
        case command
            __fish_complete_command
        case file
            __fish_complete_path "$argv[2]"
        case folder
            __fish_complete_directories "$argv[2]"
        case branch
            command git for-each-ref --format='%(refname:short)' refs/heads refs/tags refs/remotes 2>/dev/null
        case '=*'
            string split , -- (string sub -s 2 -- $argv[1])
        case '*'
            command agentd complete $argv[1] "$argv[2]" 2>/dev/null
    end
end

function __agentd_off
    complete -e -c agentd
    set -l names (set -gn | string match -r '^(?:__agentd_.*|AGENTD_(?:RUNNING|ASKING|PROMPT))$')
    set -e $names
    functions -e (functions -an | string match -r '^__agentd_.*')
end

complete -e -c agentd
complete -c agentd -f -a '(__agentd_complete)'
